"""Each way in which rules were once certain and wrong, and what they may be certain of instead, several rows to a kind.

A row: question, reference, prediction, what the rules may decide with certainty, and which way they guess where they
stand last. `OPEN` rows go on to the next judge.
"""

import pytest

from judge.rules.judge import RulesJudge
from judge.verdict import Failure, JudgeRequest, NoVerdict, Verdict

RIGHT, WRONG, OPEN = "right", "wrong", "open"
TRUE, FALSE = "probably right", "probably wrong"

AMOUNTS = [
    ("What is the total on the bill?", "$1,000.00", "$1,001.00", OPEN, FALSE),
    ("What is the price?", "$1,000.00", "$1,000", RIGHT, TRUE),
    ("What is the amount due?", "5,499.00", "5,500.00", OPEN, FALSE),
    ("What is the longitude of the point?", "13.4050", "13.4056", OPEN, FALSE),
    ("What is the account number?", "100200300", "100200301", OPEN, FALSE),
    ("What is the value of the bar?", "1254", "1245", OPEN, FALSE),
    ("What is the phone number?", "555-0182", "555-0128", OPEN, FALSE),
    ("What is the invoice total?", "€ 2.310,00", "€ 2.301,00", OPEN, FALSE),
    ("What is the population?", "1,200", "1200", RIGHT, TRUE),
    ("What is the share?", "12%", "12.0%", RIGHT, TRUE),
    ("What is the average?", "2.5", "2.50", OPEN, TRUE),
    ("What is the sum?", "1.234", "1234", OPEN, FALSE),
    ("How much is it?", "€12.50", "€12.05", OPEN, FALSE),
]
ORDER = [
    ("Arrange the animals from smallest to largest.", "ant, cat, cow", "cow, cat, ant", OPEN, FALSE),
    ("Sort the cities by distance, closest first.", "Bern, Basel, Geneva", "Basel, Bern, Geneva", OPEN, FALSE),
    ("What are the coordinates of A?", "(3, 4)", "(4, 3)", OPEN, FALSE),
    ("What are the coordinates of A?", "(3, 4)", "(3.0, 4)", OPEN, TRUE),
    ("What is the code on the lock?", "4, 1, 9", "1, 4, 9", OPEN, FALSE),
    ("In what order do the events occur?", "war, peace, trade", "trade, war, peace", OPEN, FALSE),
    ("Which colours does the flag have?", "red, white, blue", "blue, white and red", OPEN, TRUE),
    ("Which numbers are marked?", "1, 2, 3", "3, 1, 2", OPEN, TRUE),
    ("Which numbers are marked?", "1, 2, 3", "1, 2, 3, 4", OPEN, FALSE),
    ("What is the domain?", "(1, 5)", "{1, 5}", OPEN, FALSE),
    ("What is the domain?", "(1, 5)", "[1, 5]", OPEN, FALSE),
    ("For which x does f increase?", "[0, 2)", "(0, 2]", OPEN, FALSE),
    ("What is the solution set?", "\\{1, 5\\}", "(1, 5)", OPEN, FALSE),
    ("What is the solution set?", "{1, 5}", "{5, 1}", OPEN, TRUE),
    ("Who won?", "Brazil beat Germany", "Germany beat Brazil", OPEN, FALSE),
    ("What is the factor?", "(x+1)", "(x-1)", OPEN, FALSE),
    ("What is the function?", "f(x)", "f(y)", OPEN, FALSE),
    ("What is the ratio of boys to girls?", "3:2", "2:3", OPEN, FALSE),
]
YES_AND_NO = [
    ("Is the door open?", "yes", "Yes.", RIGHT, TRUE),
    ("Is the door open?", "No", "YES", WRONG, FALSE),
    ("Is the door open?", "Yes", "no", WRONG, FALSE),
    ("Is the door open?", "yes", "Yes, it is open.", OPEN, TRUE),
    ("Is the blue car bigger than the red one?", "yes", "Yes, the red one is bigger.", OPEN, FALSE),
    ("Is the blue car bigger than the red one?", "yes", "Yes, the blue car is bigger.", OPEN, TRUE),
    ("Is Anna taller than Ben?", "Yes", "Yes, Ben is taller than Anna", OPEN, FALSE),
    ("Is the shop open?", "yes", "Yes, it is not open", OPEN, FALSE),
    ("Is the man not wearing a hat?", "Yes", "He is wearing a hat", OPEN, FALSE),
    ("Is the man wearing a hat?", "Yes", "He is wearing a hat", OPEN, TRUE),
    ("Is the man wearing a hat?", "No", "He is not wearing a hat.", OPEN, TRUE),
    ("Is the shop open?", "no", "No, but yes on Sundays", OPEN, FALSE),
    ("Is it red?", "yes", "yes and no", OPEN, FALSE),
    ("Is there a dog in the picture?", "no", "There is no dog.", OPEN, TRUE),
    ("Which chemical symbol is shown?", "No", "NO", OPEN, None),
]
COLOURS = "Which colour is the car?\nA. red\nB. blue\nC. dark green"
ROPE = "How long is the rope? (A) 12 m (B) 13 m (C) 1.2 km. Answer with the letter."
OPTIONS = [
    (COLOURS, "B", "B", RIGHT, TRUE),
    (COLOURS, "B", "(b)", RIGHT, TRUE),
    (COLOURS, "B", "The answer is B.", RIGHT, TRUE),
    (COLOURS, "B", "B. blue", RIGHT, TRUE),
    (COLOURS, "B", "Blue", RIGHT, TRUE),
    (COLOURS, "B", "A", WRONG, FALSE),
    (COLOURS, "B", "red", WRONG, FALSE),
    (COLOURS, "blue", "B", RIGHT, TRUE),
    (COLOURS, "B", "B. red", OPEN, FALSE),
    (COLOURS, "B", "D", OPEN, FALSE),
    (COLOURS, "B", "B is incorrect", OPEN, FALSE),
    (COLOURS, "B", "not B", OPEN, FALSE),
    (COLOURS, "B", "A or B", OPEN, FALSE),
    (COLOURS, "B", "A, B, C", OPEN, FALSE),
    (ROPE, "A", "C", WRONG, FALSE),
    (ROPE, "A", "12 m", RIGHT, TRUE),
    (ROPE, "A", "1200 cm", OPEN, TRUE),
    ("Which letter? A. D B. C C. B D. A", "A", "D", OPEN, None),
    ("Which shape comes next?", "C", "B", OPEN, FALSE),
    ("Which shape comes next?", "B", "B is incorrect", OPEN, FALSE),
    ("Which shape comes next?", "C", "(C)", OPEN, TRUE),
    ("How many dots are there?\nChoices:\n(A) 3\n(B) 4\n(C) 5", "B", "4", RIGHT, TRUE),
    ("How many dots are there?\nChoices:\n(A) 3\n(B) 4\n(C) 5", "4", "3", WRONG, FALSE),
]
SIGNS_AND_CASE = [
    ("Simplify.", "n!", "n", OPEN, FALSE),
    ("What is shown?", "n", "n!", OPEN, FALSE),
    ("Which language is it?", "C++", "C", OPEN, FALSE),
    ("Which language is it?", "C#", "C", OPEN, FALSE),
    ("Which grade?", "A*", "A", OPEN, FALSE),
    ("What is x?", "-5", "5", OPEN, FALSE),
    ("How large is it?", "10 m²", "10 m2", RIGHT, TRUE),
    ("What is the expression?", "x²", "x2", OPEN, FALSE),
    ("What is the charge?", "2+", "2", OPEN, FALSE),
    ("Which element is it?", "Co", "CO", OPEN, FALSE),
    ("What resistance does it have?", "10 MΩ", "10 mΩ", OPEN, FALSE),
    ("What power does it have?", "5 MW", "5 mW", OPEN, FALSE),
    ("Which compound is it?", "NaCl", "NACL", OPEN, None),
    ("Which genotype?", "Aa", "AA", OPEN, FALSE),
    ("What is the password?", "Secret", "secret", OPEN, None),
    ("Which colour is it?", "red", "Red", RIGHT, TRUE),
    ("What does the sign say?", "No Entry", "NO ENTRY", RIGHT, TRUE),
    ("What does the sign say?", "No Entry", "No Exit", OPEN, FALSE),
    ("Where is it?", "Statue of Liberty", "statue Of liberty", RIGHT, TRUE),
]
LABELS = [
    ("Which figure shows it?", "3.10", "3.1", OPEN, FALSE),
    ("Which section is it in?", "3.0", "3", OPEN, None),
    ("Which chip is on the board?", "2E3", "2000", OPEN, FALSE),
    ("What is the postcode?", "00123", "123", OPEN, FALSE),
    ("Which room is it?", "007", "7", OPEN, FALSE),
    ("Which bus is it?", "117", "117", RIGHT, TRUE),
    ("Which version runs?", "1.10", "1.1", OPEN, FALSE),
    ("What was the score?", "3:15", "15:3", OPEN, FALSE),
    ("What was the score?", "2:1", "02:01", OPEN, FALSE),
    ("What is the serial number?", "12-34", "1234", OPEN, FALSE),
    ("What is printed on the part?", "2E3", "2000", OPEN, FALSE),
    ("What does the sign say?", "5.0", "5", OPEN, None),
    ("Which decade?", "1990s", "1990", OPEN, FALSE),
]
COUNTS = [
    ("How many people are there?", "12", "13", WRONG, FALSE),
    ("How many people are there?", "12", "12.0", RIGHT, TRUE),
    ("How many people are there?", "12", "twelve", OPEN, TRUE),
    ("How many people are there?", "12", "-12", OPEN, FALSE),
    ("In the picture, how many birds can be seen?", "4", "5", WRONG, FALSE),
    ("How many tickets were sold, in millions?", "5", "5000000", OPEN, None),
    ("About how many people live there?", "1000", "1010", OPEN, FALSE),
    ("Which bus has how many seats?", "12", "13", OPEN, FALSE),
    ("What is the number of the bus?", "117", "171", OPEN, FALSE),
    ("How many apples are on the table?", "5", "5 apples", OPEN, TRUE),
    ("How many apples are on the table?", "5", "five apples", OPEN, TRUE),
    ("How many apples are on the table?", "5", "5 kg", OPEN, FALSE),
    ("How many apples are on the table?", "5", "5 tables", OPEN, FALSE),
    ("How many dots are there?", "7", "about 7", OPEN, TRUE),
    ("How many dots are there?", "7", "7 or 8", OPEN, FALSE),
    ("How many dots are there?", "7", "at least 7", OPEN, FALSE),
    ("How many pages does the book have?", "24", "two dozen", OPEN, TRUE),
]
UNITS = [
    ("How much fits in?", "1 gallon", "3.785 L", RIGHT, TRUE),
    ("How large is the field?", "2 acres", "2 hectares", OPEN, FALSE),
    ("How large is the field?", "1 acre", "4047 m²", RIGHT, TRUE),
    ("How fast is the boat?", "10 knots", "18.52 km/h", RIGHT, TRUE),
    ("How heavy is he?", "10 stone", "140 lb", RIGHT, TRUE),
    ("How much flour?", "2 cups", "16 fl oz", RIGHT, TRUE),
    ("How thick is it?", "5 µm", "5000 nm", RIGHT, TRUE),
    ("How long did it last?", "1 decade", "10 years", RIGHT, TRUE),
    ("How long is it?", "2 m", "200 cm", RIGHT, TRUE),
    ("How long is it?", "2 m", "2 km", OPEN, FALSE),
    ("How long is it?", "2 m", "2 kg", OPEN, FALSE),
    ("How tall is he?", "5 ft 10 in", "70 inches", RIGHT, TRUE),
    ("How long is the film?", "90 min", "1.5 hours", RIGHT, TRUE),
    ("How far is it?", "10 miles", "16.09 km", RIGHT, TRUE),
    ("How far is it?", "1 mile", "2 km", OPEN, FALSE),
    ("How far is it?", "1000 m", "1.001 km", OPEN, FALSE),
    ("How many inches are 5 feet?", "60 inches", "5 feet", OPEN, None),
    ("What is the temperature?", "25 °C", "77 °F", OPEN, TRUE),
    ("What is the temperature?", "25 °C", "25 °F", OPEN, FALSE),
    ("By how much did the temperature rise?", "5 °C", "9 °F", OPEN, TRUE),
    ("By how much did the temperature rise?", "5 °C", "41 °F", OPEN, FALSE),
    ("What is the margin of error of the thermometer?", "1 °C", "33.8 °F", OPEN, None),
    ("What is the difference in temperature?", "10 K", "10 °C", OPEN, TRUE),
    ("How much warmer is it inside?", "18 °F", "10 °C", OPEN, TRUE),
    ("What is its weight in kg?", "5", "5 kg", OPEN, TRUE),
    ("What is its weight in kg?", "5", "5 lb", OPEN, FALSE),
    ("How long is it?", "2 m", "2", OPEN, TRUE),
    ("How large is the torque?", "5 N·m", "5 J", OPEN, FALSE),
    ("What is the moment about A?", "12 J", "12 newton meters", OPEN, FALSE),
    ("How large is the torque?", "5 N·m", "500 N·cm", RIGHT, TRUE),
    ("How much work is done?", "5 J", "0.005 kJ", RIGHT, TRUE),
    ("How much did she pay?", "5 pounds", "5 lb", OPEN, None),
    ("What is the price of the ticket?", "5 lb", "5 pounds", OPEN, None),
    ("How much is it worth?", "1 pound", "16 oz", OPEN, None),
    ("How heavy is the bag?", "5 pounds", "5 lb", OPEN, TRUE),
]
MONEY_AND_FALLS = [
    ("How many dollars does it cost?", "5", "$5", OPEN, TRUE),
    ("What is the price in euros?", "12.5", "€12.50", OPEN, TRUE),
    ("How much is the bag?", "$5", "5 dollars", OPEN, TRUE),
    ("How much is the bag?", "$5", "€5", OPEN, FALSE),
    ("What is the revenue?", "$5 million", "$5,000,000", OPEN, TRUE),
    ("What is the revenue?", "$5 million", "$5m", OPEN, None),
    ("What is the revenue?", "$5 million", "$5", OPEN, FALSE),
    ("By how much did it fall?", "5%", "-5%", OPEN, TRUE),
    ("How much did the price drop?", "12", "-12", OPEN, TRUE),
    ("What was the decrease?", "3.5", "-3.5", OPEN, TRUE),
    ("How many fewer people came?", "20", "-20", OPEN, TRUE),
    ("By how much did it grow?", "5%", "-5%", OPEN, FALSE),
    ("What share voted yes?", "12%", "0.12", OPEN, TRUE),
    ("What percentage agrees?", "12", "0.12", OPEN, FALSE),
]
DATES = [
    ("When was it?", "March 5, 2020", "2020-03-05", RIGHT, TRUE),
    ("When was it?", "March 5, 2020", "5th of March 2020", RIGHT, TRUE),
    ("When was it?", "March 5, 2020", "March 6, 2020", WRONG, FALSE),
    ("When was it?", "5 Mar 2020", "May 3, 2020", WRONG, FALSE),
    ("When was it?", "05/03/2020", "March 5, 2020", OPEN, None),
    ("When was it?", "March 2020", "March 5, 2020", OPEN, None),
    ("When was it?", "2021-05-13", "13/05/2021", OPEN, None),
    ("When was it?", "2021-05-13", "05/12/2021", OPEN, FALSE),
    ("In which year was it built?", "1932", "1923", OPEN, FALSE),
    ("In which year was it built?", "2020.0", "2020", RIGHT, TRUE),
    ("What time does the train leave?", "15:30", "3:30 pm", OPEN, None),
    ("What time does the train leave?", "15:30", "3:30 am", OPEN, FALSE),
    ("What time is it?", "3:15", "quarter past three", OPEN, None),
]
MATHS = [
    ("What is the probability?", "\\frac{1}{3}", "\\frac{2}{6}", RIGHT, TRUE),
    ("What is the length of the diagonal?", "5\\sqrt{2}", "\\sqrt{50}", RIGHT, TRUE),
    ("What is the derivative?", "2x+2", "2(x+1)", RIGHT, TRUE),
    ("What is the area?", "4\\pi", "4π", RIGHT, TRUE),
    ("What is the area?", "4\\pi", "4", OPEN, FALSE),
    ("Factor the polynomial.", "(x-1)(x+1)", "x^2-1", OPEN, None),
    ("Simplify 2/6.", "\\frac{1}{3}", "\\frac{2}{6}", OPEN, None),
    ("What is the date?", "10/12", "5/6", OPEN, FALSE),
    ("What is x?", "12", "x = 12", OPEN, TRUE),
    ("What is x?", "5", "y = 5", OPEN, FALSE),
    ("What is the answer?", "2^{10}", "9^{9^{9^9}}", OPEN, FALSE),
    ("What is it?", "AB+C", "ab+c", OPEN, None),
]
SENTENCES = [
    ("What share used it in 2018?", "68", "In 2018, 68% of people used it.", OPEN, TRUE),
    ("What share used it in 2018?", "68", "In 2018, 67% of people used it.", OPEN, FALSE),
    ("How many colors are used?", "4", "There are four colors used: red, blue, green, and orange.", OPEN, TRUE),
    ("How many bars are above 50?", "3", "There are 3 or 4 bars above 50.", OPEN, FALSE),
    ("What is the difference?", "12", "The highest bar is 20 and the lowest is 12.", OPEN, FALSE),
    ("What is the sum?", "27", "12 + 15 = 27", OPEN, TRUE),
    ("What is the sum?", "27", "27 + 15 = 42", OPEN, FALSE),
    ("In which year did sales peak?", "2014", "The peak year was 2014, when sales reached 340 million.", OPEN, TRUE),
    ("In which year did sales peak?", "2014", "Sales rose from 2014 and peaked in 2016.", OPEN, FALSE),
    ("What is the speed limit?", "55 mph", "The speed limit is 55 miles per hour.", OPEN, None),
    ("What is the speed limit?", "55 mph", "The speed limit is 55 kilometers per hour.", OPEN, FALSE),
    ("What is the date of the letter?", "March 5, 1998", "The letter is dated 5 March 1998.", OPEN, None),
    ("What is the date of the letter?", "March 5, 1998", "The letter is dated May 5, 1998.", OPEN, FALSE),
    ("Who is the letter from?", "R. Jones", "The letter is from S. Miller to R. Jones.", OPEN, FALSE),
    ("Where is the meeting?", "Washington, DC", "The meeting is held in Washington, DC.", OPEN, TRUE),
    ("Who is Mr. Kumar?", "Managing Director", "Mr. Kumar is the Managing Director.", OPEN, TRUE),
    ("Who is Mr. Kumar?", "Managing Director", "Mr. Kumar is the Deputy Managing Director.", OPEN, None),
    ("What does the plate say?", "ABC 123", 'The license plate says "ABC 123."', OPEN, TRUE),
    ("Which country has the highest value?", "Norway", "Norway has the highest value, with 82%.", OPEN, TRUE),
    (
        "Which country has the highest value?",
        "Norway",
        "Sweden has the highest value, followed by Norway.",
        OPEN,
        FALSE,
    ),
    ("Which country has the highest value?", "Norway", "Norway, Sweden, Denmark", OPEN, FALSE),
    ("What is the man holding?", "umbrella", "He is holding a black umbrella.", OPEN, TRUE),
    ("Which animal is it?", "dog", "hot dog", OPEN, FALSE),
    ("Which is closer, the tree or the car?", "the car", "The tree is closer than the car.", OPEN, FALSE),
    ("What color is his hat?", "white", "He is wearing a black hat and a white shirt.", OPEN, FALSE),
    ("What color is his hat?", "white", "He is wearing a white hat.", OPEN, TRUE),
    ("What fruit is in the bowl?", "apple", "There is no apple in the bowl.", OPEN, FALSE),
    ("What is the title?", "The Great Gatsby", "The title is Great Gatsby.", OPEN, TRUE),
    ("What does the sign say?", "No Parking", "Parking", OPEN, FALSE),
    ("Is there a dog? Please answer yes or no.", "Yes", "Yes, there is a dog in this image.", OPEN, TRUE),
    ("Is there a dog? Please answer yes or no.", "Yes", "I cannot tell whether there is a dog.", OPEN, FALSE),
    ("Are there two pizzas in this image?", "Yes", "There are three pizzas in this image.", OPEN, FALSE),
    ("Is the bar for 2010 higher than that for 2012?", "Yes", "The bar for 2012 is higher.", OPEN, FALSE),
    ("Is the radius known? A: 3 B: 4 C: 5", "B", "The radius is 4, so the correct answer is B.", OPEN, TRUE),
    ("Is the radius known? A: 3 B: 4 C: 5", "B", "The radius is 5, so the correct answer is B.", OPEN, FALSE),
    ("Is there a clock in the picture?", "no", "There isn't a clock in the picture.", OPEN, TRUE),
    ("Is there a clock in the picture?", "yes", "There isn't a clock in the picture.", OPEN, FALSE),
    ("Which vehicle is it?", "motorcycle", "It's a red motorcycle.", OPEN, TRUE),
    ("Which direction does the arrow point?", "right", "The arrow points to the right.", OPEN, TRUE),
    (COLOURS, "B", "The car is blue.", OPEN, TRUE),
    (COLOURS, "B", "The car is red.", OPEN, FALSE),
]
CASES = [
    *(AMOUNTS + ORDER + YES_AND_NO + OPTIONS + SIGNS_AND_CASE + LABELS),
    *(COUNTS + UNITS + MONEY_AND_FALLS + DATES + MATHS + SENTENCES),
]


async def grade(judge, question, reference, prediction):
    (outcome,) = await judge.grade(JudgeRequest(question=question, reference=reference, predictions=(prediction,)))
    return outcome


@pytest.mark.parametrize(("question", "reference", "prediction", "certain", "leaning"), CASES)
async def test_rules_decide_what_writing_settles_and_leave_the_rest(question, reference, prediction, certain, leaning):
    outcome = await grade(RulesJudge(is_last=False), question, reference, prediction)
    if isinstance(outcome, NoVerdict):
        assert outcome.failure is Failure.UNDECIDED
        assert certain == OPEN
    else:
        assert certain == (RIGHT if outcome.is_correct else WRONG), outcome.reason
    last = await grade(RulesJudge(), question, reference, prediction)
    assert isinstance(last, Verdict)
    assert last.reason.startswith("best guess: ") == (certain == OPEN)
    assert leaning in (None, TRUE if last.is_correct else FALSE), last.reason
